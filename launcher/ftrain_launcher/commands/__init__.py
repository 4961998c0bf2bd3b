"""The commands of ``ftrain``: one file per command, or per handful that belong together."""
