"""What a step costs before it runs: FLOPs, memory, bytes moved and a bound on its time, counted from its jaxpr."""
