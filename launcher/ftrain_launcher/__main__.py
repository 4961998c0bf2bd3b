"""``python -m ftrain_launcher``: the ``ftrain`` command."""

from ftrain_launcher.cli import main

main()
