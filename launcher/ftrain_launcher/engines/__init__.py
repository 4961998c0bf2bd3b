"""Where nodes come from: one file per engine."""
