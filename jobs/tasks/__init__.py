"""What the verbs do, as objects that travel in a pickle: settings come in, a line of result out."""
