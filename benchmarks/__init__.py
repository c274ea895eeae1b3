"""How fast each part is on this machine. Imports the package; the package never imports this."""
