"""Fast paths of the scoring module, applied from outside; each is tested against the eager one."""
