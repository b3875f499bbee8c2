"""Packs ready groups into balanced batches."""
