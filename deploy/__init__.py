"""The eachprompt command, configuration and the local supervisor."""
