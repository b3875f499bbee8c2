"""The group of ranks: how they meet, agree, and notice that one is gone."""
