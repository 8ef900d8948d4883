"""attachd beside os-brick and the bare tools: `scripts/bench`."""
