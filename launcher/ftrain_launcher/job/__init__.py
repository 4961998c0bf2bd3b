"""The job's state machine and its parts, all pure: events in, commands out (`coordinator`)."""
