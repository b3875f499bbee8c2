"""How a request becomes rollouts: the vLLM producer, its engine and the weights that it takes."""
