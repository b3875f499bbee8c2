"""What router replay buys over whole training runs, on real vLLM."""
