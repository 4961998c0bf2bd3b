"""The controller: the shell round the job's state machine, its journal and its copies, what operators see."""
