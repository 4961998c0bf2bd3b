"""The processes that run a job: command line, controller, agents. Never imports torch."""
