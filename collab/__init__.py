"""collab: a small language model learns when, what and how to ask a large one for help."""
