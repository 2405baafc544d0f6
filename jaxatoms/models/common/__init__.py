"""What all backbones share: reductions over atoms, precision policy, moves between edges and atoms."""
