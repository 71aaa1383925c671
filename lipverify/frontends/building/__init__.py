"""The layers of the builder: nodes, shapes, arithmetic. Front ends use `frontends.builder`."""
