"""All that knows vLLM: one engine, started, watched, fed and given new weights."""
