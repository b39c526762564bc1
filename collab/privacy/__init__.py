"""Privacy: which private units left the machine."""
