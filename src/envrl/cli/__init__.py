"""The command line: `main` finds the command; the modules beside it are the commands, which import what they need late."""
