"""Whole layers that add nothing: DeepArc's modules (Ren et al. 2023), as the paper compares with them (section 2.2).

Adjacent layers whose outputs look alike to CKA form a module; its first layer stays and the rest is sewn over.
"""

from neusemslice.deeparc.comparing import cka_matrix as cka_matrix
from neusemslice.deeparc.removal import Seam as Seam
from neusemslice.deeparc.removal import Sewn as Sewn
from neusemslice.deeparc.removal import remove_redundant as remove_redundant
