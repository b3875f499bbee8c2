"""Everything that knows vLLM: one engine, how it is started and watched, and how it takes requests and weights."""
