"""One module a subcommand of `eachprompt`: `add_arguments(parser)` and `run(arguments) -> exit code`."""
