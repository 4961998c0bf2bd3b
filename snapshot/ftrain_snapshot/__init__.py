"""The snapshot tier: keeps the bytes of a job in erasure-coded CPU memory. Never imports torch."""
