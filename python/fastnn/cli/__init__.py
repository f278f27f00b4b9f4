"""The command line, `fastnn`."""
