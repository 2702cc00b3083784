"""Draw circuits as pictures, and as pages that open offline."""
