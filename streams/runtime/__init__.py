"""How a process lives and ends: signals, health, watchdogs, exit codes."""
