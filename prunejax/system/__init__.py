"""What the machine gives: files, signals, limits; the errors and exit codes of every command."""
