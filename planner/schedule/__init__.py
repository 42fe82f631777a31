"""From counts to every lane's rows, reads and uses: demand, selection, placement, orders, walks, annealing."""
