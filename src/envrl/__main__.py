from envrl.cli.main import main

raise SystemExit(main())
