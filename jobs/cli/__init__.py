"""The command line: options, --help, error messages."""
