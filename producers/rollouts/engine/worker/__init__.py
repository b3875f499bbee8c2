"""What runs inside vLLM's own processes: the plugin, the worker's extension, the weight-transfer backend."""
