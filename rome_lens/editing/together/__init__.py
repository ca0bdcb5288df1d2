"""Many facts solved together: MEMIT, EMMET and AlphaEdit by one system of equations, and the set of facts as an object."""
