"""Operations that have a kernel for some hardware, and the hardware that a program is made for."""
