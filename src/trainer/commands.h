// The commands of the program `maniple`.
#pragma once

namespace maniple {

// Parses the command line, runs the command, prints one line for an error; returns the exit code.
int run_program(int argc, char** argv);

}  // namespace maniple
