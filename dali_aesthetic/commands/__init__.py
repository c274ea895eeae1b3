"""The commands, a file each or for a few that belong together, and what they share: `command`, `options`."""
