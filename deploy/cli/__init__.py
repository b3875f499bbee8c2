"""The `eachprompt` command."""
