"""Whatever is bad is refused in one sentence, or survived: tried with seeded random badness."""
