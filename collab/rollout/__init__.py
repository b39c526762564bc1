"""Multi-step rollouts: `state` (device records), `decode` (pure, jitted), `engine` (host)."""
