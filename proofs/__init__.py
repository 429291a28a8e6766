"""The long proofs: many seeded kills and floods, too long for the test suite, with results that are committed."""
