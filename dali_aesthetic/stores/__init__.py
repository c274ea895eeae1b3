"""Object stores: reads and writes at URLs, for all other packages."""
