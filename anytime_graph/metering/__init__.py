"""One metered call, held to what it reserved and charged what it cost; and what may still be spent."""
