"""How the log is read and written: clients, readers, transactions, history, dead letters, administration."""
