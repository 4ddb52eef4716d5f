"""The commands: arguments, progress and reports."""
