from berxit.toolkit.cli import main

main()
