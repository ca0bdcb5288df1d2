"""Many facts solved together: MEMIT, EMMET and AlphaEdit by one system of equations, and their set as an object."""
