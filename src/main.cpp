#include "trainer/commands.h"

int main(int argc, char** argv) { return maniple::run_program(argc, argv); }
