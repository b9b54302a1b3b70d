from anytime_graph.cli import main

main(prog_name="anytime-graph")
