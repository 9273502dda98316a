"""The command line: `main` finds the command; the modules beside it are the commands, importing what they need late."""
