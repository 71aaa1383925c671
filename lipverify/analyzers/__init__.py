"""Methods that bound a Lipschitz constant. One name, one row of a report; see `protocol` for what a method must offer."""
