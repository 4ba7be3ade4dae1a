"""What the seeds of `retort/TextWorld-v0` make; written by `textworld_games.write_digests`."""

# family and difficulty -> split -> digests of consecutive seeds; - where a game had been there before
DIGESTS: dict[tuple[str, int], dict[str, str]] = {
    ("coin_collector", 1): {
        "train": """
            f639d94ffeeb66b0 41e6b538191d1a52 6186ac3876689028 2eb9fbe18bdba561 9d09cda4109e42ed
            edbb95e752c9c6e9 db8e7a61ae2d82da ed4a9a20d84f03f5 d402732b173b88d7 83d5a9a3631d3cd5
            2e3279ce7496fdaa 4d7dc8f4fed1dd5c 9cf908758254bbe3 8a681fffad84ca16 d6ea5c4b10b45277
            68911a9f7e497cf2 496ba3c324ee720d 8423cadb63a6be51 d06cd2228cafd0ae 1330fe75868d9dd0
        """,
        "validation": """
            3369613d92fd50f4 e6c1a4a8d59224d8 b976515bc42d7761 1e11a1f363da27e4 b1e0b536c6a25920
        """,
        "test": """
            190f390635345354 9bbd4de132994e80 89a584dbdf8b459d 882eadf342135c3b cb8afc25e0c48a6b
        """,
    },
    ("coin_collector", 2): {
        "train": """
            3cb95b0b37c35a38 3e48ee45d8946766 317bca479e21ef26 334c6309e8873a6d f9e4e69396a02335
            ff0d8d6045563887 22e2d07b96c2116b 63058eb732183c3e 34495b88a50112f9 e3f3797ef620304d
            0eec6238ad341f3b 55387ebd1d4ed050 fbb27c018a3ac516 a18dbafe6a37a6a6 16be750a7451b9f7
            7362687bb1a75eb1 a6eb515d843fa231 2020f7c05af1c84a 3e33c129e6b88b9c e658adcde99cbaa9
        """,
        "validation": """
            e04f1ef8200a9332 5951d5c507ab77b3 3bcf7bc2febb1946 8cfc2a5e2030e2c4 2201f4529e74c4f5
        """,
        "test": """
            f8ad69643033b41d 0f37cdd47eab9d9b 66736a64e6ab83c3 b7fd06a6d824eeca 57e545979591239a
        """,
    },
    ("coin_collector", 3): {
        "train": """
            0cbdc8da61204b63 d31f943ecaa5227c cbf0876c3e55b53c c3aa6c56c250521e 214f6c8581cc4cb5
            1b5d5d6f987b9a94 a5bcaeb887262e3c b519f36608b4eac4 821dc67f72364f8b f6244badaadf85ac
            094c490a9386d4c2 0a945784ef12a91c 667424b8365ba957 335a3f128723a455 55fad92de57ee3ee
            1cd83aa24f895cf1 2890ac83d84be2cb d75e56f42dd5263a 2b8f1bb32f3f9bf5 867555af1c4bf8c4
        """,
        "validation": """
            bc0d169c08a3a894 55a5fa09fd99b4a4 ef7c1b18a7b54b1f 8605bd9911aa954c 560302dd458dc942
        """,
        "test": """
            a2f37c7b0343580c 2993b0d51870c414 be2af9bc22d0e8cd 7257471f8c403131 35d31fbbae64038d
        """,
    },
    ("cooking", 1): {
        "train": """
            776de5ecad5701ac 3db59ba95a57b498 51bcfe42ff9eac15 cac8c05d9f299d26 392d19c1349cf764
            8ef53d9db38a9994 ca69ba82a640a6c2 b2de8a0293bed771 1709d82517c5a75f f758635c2811e836
            0bc5e912dfda6d36 3aa69420776bf2f0 0a8d9345911da88d 56be9ec9aec039c5 9233047fbfec6a33
            4aecbb07fd0a24e3 87a74b176372b19e 86153d2f4a48a95d 82386a210def4c12 c39b7cae4833cbc4
        """,
        "validation": """
            fa83e43e4ea3aecc 2bd5ad1173f9fa05 f540a92862feee48 ca0f97af17fd0e7b 2e6b2a3ef9bf2232
        """,
        "test": """
            8a489b802c6c271b 60fdee506b483608 0856274c0ec72366 cab6fcd6ecf81b54 c9fc4dd18aca4260
        """,
    },
    ("cooking", 2): {
        "train": """
            f8e1f71c911c1df4 6e273dce9c54c137 5160fc15d6bbc018 a30090106d2b8114 fe74b6a3f510c20c
            f5c69ce1573600a4 948104cfe4a26b92 c5af309ddf246bbe 308e7455b3916b02 29e565bb547ac530
            29958e6a8348a2d7 545a953885053785 0b297343af19997f 9bba9a65e15354f0 123e81011ccb98cc
            df418768ce25cd65 17fd8c20110cfe65 bc9707a58d928efd de70f6ca756a6dad b6d5828ecb4e7b89
        """,
        "validation": """
            84511dee5fbaed80 acc736069bcc5301 215ef9f171ec2de6 18807c00370de49d d12c31e901ab1970
        """,
        "test": """
            c1ad090823754198 372c905f8e81001b a98f378f9b615059 d197942f51bfda15 c8d9c201eeca59c6
        """,
    },
    ("cooking", 3): {
        "train": """
            628742430b72f759 caab93c94c63ff06 fd8c2258a15dfb2b faa3d57ac04cb411 fafab540258a4fe5
            04a2ea48c00008de c2786d64f52ddc06 23f1bd4354c57074 14bde3adad7061ed ab879b2cd4b00e54
            0e02e393a5b205a9 15ae24ab74edf038 f01d6d1baaad9c56 d89be62f7a4544fb 69ef39f587084f26
            f79d09c5c8efcb22 24cacdaa3792d4d9 4898fc0f9cd4440f 9e05bfd1ab83e333 0b1d305101c3d06e
        """,
        "validation": """
            df23365fec6b0f45 8992686df0e55b59 f35c8a2acec39b1b b68e11daff10f0a6 3bdd1f9f02da3854
        """,
        "test": """
            1556df0a251a29b0 3c7fa468450b429a 188475101b02961d 1ef5184d5a1c04f8 3ec3ff6cf932c53a
        """,
    },
    ("custom", 1): {
        "train": """
            e4f51e72dac02ae3 15b4b14c99805d53 c94362eeaa28cc50 a5c484d0cd16a8c6 f7e6e8059d6f79c2
            a7a23173fe32be0b 35f21f7921ed61bc 2ddc58505027bebe d83acec17fe36803 f3b23570a9a305a0
            b2d22f9c89a02611 1b60618d8354929d e30bfc475b6faabd fbe00df8f0e4d8b4 9d95295bceee03a7
            af5e583160235c49 c4268c324226258e f60aeb35232ed9c3 22f4c9b1424e5a00 82825d2e83f5ef59
        """,
        "validation": """
            d24cbf8a8f714e73 11f365c7ea1d68bb dc806ef1a58759c4 55657c5f51a6b80a 3597efcae9b16e1d
        """,
        "test": """
            51c0286eedeab593 fbde178dcc378818 046443485f5234c3 fec960c873830eef 5844887b4cea5801
        """,
    },
    ("custom", 2): {
        "train": """
            ca9c591356363053 415d783036d2722f 5d94cf8559c80879 8f311e1ca569f060 22d2135095a8a609
            751e6e19779aafa0 7770552aec8994c7 3b35d524346152d8 2abce96b5f79e930 3698d061e9b53eb5
            22bda1003c86baed c003bbb1847307e5 0219579bcdfeb706 26169cdbc916aabb 65392ad906f54519
            6ca629cd2ca3a9e7 8f0740bd038507c3 d8a8b92f38a9d7d4 69a5784d337c0625 86e45ae4e53d261f
        """,
        "validation": """
            4c78ae80b6cb73df 62d18c544f2cf542 a1ab4cdc8c1a055f 6bcac3350b72850c ae4e35e988640480
        """,
        "test": """
            b7a544386f294f1f 68f54f4b2ebb5557 866594b9c2d2e1c2 bc6012f36a5d9b26 faf1436c16e74285
        """,
    },
    ("custom", 3): {
        "train": """
            a35088adfb51b421 7f689000acd28b7e ae665dad1fde0c76 68d785d12ca57e68 1cab0737ddbf21e1
            dc47408163fff0cd c9421ae1d50a6886 a125386dc25a1c86 700c0b872810bf0f 7d353fc01742b1e6
            dda8b5f749055be6 e9f5053bfb34cb63 1db90eae801b1027 7a0a33d5e5145cbf 74afb207e91848d1
            c878b2e61110e94d 9a3a6b7d948db727 7e9dfcf5753dee62 e6d3ca884eaccbaf c771ef695dc09b60
        """,
        "validation": """
            552bb920033e71e2 b8559ad8133c6e4d 336cbded5f7e161d 0d2fa2797e9b6866 cf232efd3f0bc4c8
        """,
        "test": """
            6a0dfc8ee1b1f725 94e384bfefa80dda d180f476a8b9f0cc 860ea6bdd47699c5 32aba2be2ee8701c
        """,
    },
    ("treasure_hunter", 1): {
        "train": """
            169b89c4c1c043c3 632c1e62c46de937 a12c3acadafc27e4 49ca6f6a94fbe2eb 1f743ee519844f71
            c68d65b94fa873e1 0a78c56e786021cc 0b0b1e2af4601ae0 5c1e38f729bcc892 63944e4a0204a0c6
            f880cb88d003ba6d b1fc9c4f25f86e2e 33717a4cd93b7c7c 62ec090e46946eeb 8e4dc82d34c7be2c
            d2e2dd2220cc95b4 11c31ed326521cbc e257c6ec17adbbe8 e7e6ecf132ceddc9 70d27d595b4bcfb4
        """,
        "validation": """
            47142c99f91bde9c d39e8a0f2600bbba fcbd1ce30c9cd4ec 6e4c6e9bec9ad613 3dd0d181a5598e85
        """,
        "test": """
            cc31d8f51009c6b1 df586fc741f506a8 289843d7093dfa8d 384d73b74ebef79e 7ee779ee17aa6079
        """,
    },
    ("treasure_hunter", 2): {
        "train": """
            3ccda5d390e7b4d2 8247cecf610b656b 582bace5bb39c062 ca1d5438bdd5ea14 c4850b62023b23be
            6ede76a24b5f6ff9 80bf00aa1559f2f2 a62e17dc393b3b5b 7b235f57ac80c2b5 6903d6f40cc88342
            8e47953beb6c751d fd5aa6a04ed61fed ec072ae3f0ca5e74 f1f87cf12f296779 2e7580a1634c5616
            0a2025175fa9d977 8bbb61f3f97f4f3f 643148329d4aed00 54954a14ae136fe4 142ce25f1e1676d8
        """,
        "validation": """
            6d37942927183112 139b13f3c0bfe557 1352f7a9b18dc674 f8b129153002fdab 2f4bf1d060684181
        """,
        "test": """
            609b9202035a721b 7456f439193ebbbc 0e27709a35d0da88 f221cea23f1a5930 778bd58f323e0546
        """,
    },
    ("treasure_hunter", 3): {
        "train": """
            7e4642668cc93fd6 a747b85771d06148 20ea96fc6bce6c80 0370665ee42c9ece dbf8966747b5816d
            d9b023b107e2c913 7f23e8a3c2deddd7 e72ccbb1ed27b45d e41cbc87276748fe afc2cbc92fce9f78
            c08da5b91a391ac6 be2d99c3f469a3b2 ec61111ff014aede d70f4261918157ce e633e755749f128a
            bf7b0cc47f66c988 d9b27d56aa706730 d3dcf45094c39be2 92086edcbe3c4a96 1d02c36a2c0e0b86
        """,
        "validation": """
            a854d76085a90e60 bb33d66c45b731fb a24aa87ef81eb8a9 b9b86d9714876f2c 957e026a00000fc4
        """,
        "test": """
            2f68d162d6fa2b7d 193ca9c09bc5029f e7b180af8bd1041c c5e852e72f3472a0 d16421d50993ea4b
        """,
    },
}
