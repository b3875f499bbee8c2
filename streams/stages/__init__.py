"""How is a record worked on, and when is it done: stateless workers, transactional processors, offsets, partitions."""
