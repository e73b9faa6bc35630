"""Which findings are shown, and which fail a run: by a project's file, by options, by a call."""
